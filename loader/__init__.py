"""The loading side: sources, schemas, zone model, compiler, publisher."""
