"""The served form: StableHLO as `lowbit.export.bundle` writes it into every bundle, and what runs it."""
