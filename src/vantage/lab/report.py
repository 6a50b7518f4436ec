from __future__ import annotations


def write_lab_report(result, out):
    pass
