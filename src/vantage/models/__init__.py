"""Models: how they are found, held, read and compared with a frozen one."""
