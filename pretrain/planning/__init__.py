"""What a layout costs before anybody starts it: memory, FLOPs, communication, time. Imports no torch."""
