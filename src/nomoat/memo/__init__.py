"""The leaked memo's claims, judged from published reports; docs/memo.md explains the rules.

Only eval/memo.py and eval/reference.py import this package; it may import everything below (not benchmarks or planning).
Begin with verdict.py: it gathers reports as evidence.py describes and applies rules.py; views.py shows the result.
"""
