"""The embedded backbone `mini`: its world of scenes, its styles, its networks, and the recipe that makes them."""
