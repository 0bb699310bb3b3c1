"""Validation NELBO on frozen noise, its statistics, tables and files."""
