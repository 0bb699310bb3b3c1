"""Spans of time as people read them."""


def format_duration(seconds: float) -> str:
    """`45s`, `3m05s`, `2h07m`, `4d03h`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 1:
        return f"{minutes}m{rest:02d}s"
    days, hours = divmod(hours, 24)
    return f"{hours}h{minutes:02d}m" if days < 1 else f"{days}d{hours:02d}h"
