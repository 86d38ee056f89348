"""What runs beside Flower's SuperLink: rounds, clusters, plans, catalogue, metrics."""
