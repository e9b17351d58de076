"""Training as measured curves: what each kept checkpoint retrieves, from which memory, and what its weights say."""
