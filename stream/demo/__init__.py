"""What `innerloop demo` shows: the product on real ratings, through its public parts alone."""
