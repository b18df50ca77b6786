"""The answering side: supervisor, workers, stream worker, exporter."""
