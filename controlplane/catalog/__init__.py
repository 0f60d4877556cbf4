"""What should be true: tenants, keys, upstreams, routes, leases; compiled to a snapshot."""
