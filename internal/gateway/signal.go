package gateway

// isClosed reports whether a channel that carries no values is closed.
func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// wake puts a token into a channel that holds one. If the channel has one
// already, the receiver has not taken it yet, and one token is enough.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
