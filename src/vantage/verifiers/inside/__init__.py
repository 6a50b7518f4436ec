"""Code that runs inside the sandbox: it is handed over as compiled modules and imports the standard library only."""
