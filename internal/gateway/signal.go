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

// wake puts a token into a channel that holds one. If there is one already, its
// receiver has yet to look, and one look is enough for both.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
