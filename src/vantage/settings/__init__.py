"""How do the words of a command line, and a file of settings, become a checked dataclass?"""
