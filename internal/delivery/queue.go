package delivery

import "time"

// While other deliveries wait, one in backgroundShare comes from the background.
const backgroundShare = 8

// queue holds the deliveries of a lane that are ready. Interactions go first: Discord
// waits 3 s for the response to one (Discord: Receiving and Responding). Deliveries that
// somebody asked for by the thousand, the background, go last but never stand still.
type queue struct {
	urgent, usual, background fifo
	// passed is how many others went since the last one of the background.
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

// oldest returns when the oldest of the next deliveries was received; zero if there are
// none.
func (q *queue) oldest() (at time.Time) {
	for _, f := range []*fifo{&q.urgent, &q.usual, &q.background} {
		if f.len() > 0 {
			at = earlierIgnoringZero(at, f.jobs[f.head].stored.ReceivedAt)
		}
	}
	return at
}

// fifo is a queue that keeps no memory of the jobs that it has handed out.
type fifo struct {
	jobs []job
	head int
}

func (f *fifo) len() int { return len(f.jobs) - f.head }

func (f *fifo) push(j job) { f.jobs = append(f.jobs, j) }

func (f *fifo) pop() job {
	j := f.jobs[f.head]
	f.jobs[f.head] = job{} // or the payload would live on
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
