"""Everything that needs torch: model registry, tracing, evidence by autograd. Import it only where torch is present."""
