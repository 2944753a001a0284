"""Authentication and authorisation backends. Third-party imports live only in here, lazily."""
