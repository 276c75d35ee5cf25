package delivery

import "time"

// While other deliveries wait, one in backgroundShare comes from the background.
const backgroundShare = 8

// queue holds the deliveries of a lane that are ready. Interactions go first, because
// Discord waits only 3 s for a response (Discord: Receiving and Responding). Background
// deliveries, which somebody asked for by the thousand, go last but never stop.
type queue struct {
	urgent, usual, background fifo
	// passed counts the usual deliveries since the last background delivery.
	passed int
}

func (q *queue) len() int { return q.urgent.len() + q.usual.len() + q.background.len() }

func (q *queue) push(j job) {
	switch {
	case j.stored.Name == interaction:
		q.urgent.push(j)
	case j.background:
		q.background.push(j)
	default:
		q.usual.push(j)
	}
}

func (q *queue) pop() job {
	switch {
	case q.urgent.len() > 0:
		return q.urgent.pop()
	case q.background.len() > 0 && (q.usual.len() == 0 || q.passed >= backgroundShare-1):
		q.passed = 0
		return q.background.pop()
	default:
		q.passed++
		return q.usual.pop()
	}
}

// oldest returns when the oldest event among the next deliveries was received; zero if
// there are none.
func (q *queue) oldest() (at time.Time) {
	for _, f := range []*fifo{&q.urgent, &q.usual, &q.background} {
		if f.len() > 0 {
			at = earlierIgnoringZero(at, f.jobs[f.head].stored.ReceivedAt)
		}
	}
	return at
}

// fifo is a queue. It does not keep popped jobs in memory.
type fifo struct {
	jobs []job
	head int
}

func (f *fifo) len() int { return len(f.jobs) - f.head }

func (f *fifo) push(j job) { f.jobs = append(f.jobs, j) }

func (f *fifo) pop() job {
	j := f.jobs[f.head]
	f.jobs[f.head] = job{} // otherwise the payload stays in memory
	f.head++
	if f.head == len(f.jobs) {
		f.jobs, f.head = f.jobs[:0], 0
	} else if f.head > 64 && f.head > len(f.jobs)/2 {
		n := copy(f.jobs, f.jobs[f.head:])
		clear(f.jobs[n:])
		f.jobs, f.head = f.jobs[:n], 0
	}
	return j
}
