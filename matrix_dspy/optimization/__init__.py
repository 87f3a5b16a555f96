"""Judged sets, agreement, metrics, and the compiling of programs against them."""
