"""Loss terms of the methods: pictures or features in, one scalar out."""
