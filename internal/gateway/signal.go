package gateway

// isClosed reports whether a channel on which nothing is sent was closed.
func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// wake puts a token into a channel that holds one, unless it is there already:
// whoever takes it has not seen the news of the earlier one either.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
