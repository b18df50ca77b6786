"""Who takes which lock, and who may forget to give it back.

Two tools that know nothing of the rest of this project and need nothing but the standard library (and pytest):
`standoff-lockcheck PATH...` reads Python sources (main.py), and the pytest plugin (plugin.py) watches real locks.
"""
