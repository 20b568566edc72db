//! The directory of incidents. It is the database: nothing about it is kept elsewhere.
