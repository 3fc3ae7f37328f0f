"""Measurements that users can repeat. Nothing here asserts; `docs/promises.md` says which test holds which number."""
