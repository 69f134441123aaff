//! Placeholder while the floor is laid.
