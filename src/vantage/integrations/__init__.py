"""Vantage's value estimates inside of other trainers: TRL's `GRPOTrainer`, verl's registry of advantage estimators."""
