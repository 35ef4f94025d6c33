"""What training maximises, from one draw of codes."""
