"""Wire languages of clients and upstreams."""
