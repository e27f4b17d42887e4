//! Two real daemons, real servers, and everything that can go wrong with them.
