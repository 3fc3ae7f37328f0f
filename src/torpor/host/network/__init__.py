"""One network place per microVM, made ahead: namespace, tap, veth, addresses, rules. See `slot` and `pool`."""
