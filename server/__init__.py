"""The server runs beside Flower's SuperLink: it holds rounds, finds clusters, plans submodels and tells metrics."""
