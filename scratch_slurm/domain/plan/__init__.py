"""The plan: what each dataset needs by itself (`moves`), and how all share the disks (`room`, `placing`)."""
