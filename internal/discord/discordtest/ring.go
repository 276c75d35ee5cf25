package discordtest

import "strconv"

// frame is a dispatch without its sequence number.
type frame struct {
	name string
	head []byte // of a recorded frame: the bytes before the value of `s`
	data []byte // the value of `d`; of a recorded frame, the bytes after that of `s`
}

// append writes the frame with its sequence number.
func (f *frame) append(b []byte, seq int64) []byte {
	if f.head != nil {
		b = append(b, f.head...)
		b = strconv.AppendInt(b, seq, 10)
		return append(b, f.data...)
	}
	b = append(b, `{"t":"`...)
	b = append(b, f.name...)
	b = append(b, `","s":`...)
	b = strconv.AppendInt(b, seq, 10)
	b = append(b, `,"op":0,"d":`...)
	b = append(b, f.data...)
	return append(b, '}')
}

// ring keeps the last dispatches of a session, which are numbered from first to
// first+n-1.
type ring struct {
	limit int // how many frames make it full; push accepts more
	slots []frame
	head  int
	n     int
	first int64
}

func newRing(limit int) ring { return ring{limit: limit, first: 1} }

func (r *ring) full() bool { return r.n >= r.limit }

func (r *ring) push(f frame) {
	if r.n == len(r.slots) {
		r.grow()
	}
	r.slots[(r.head+r.n)%len(r.slots)] = f
	r.n++
}

func (r *ring) grow() {
	slots := make([]frame, max(64, 2*len(r.slots)))
	for i := range r.n {
		slots[i] = r.slots[(r.head+i)%len(r.slots)]
	}
	r.slots, r.head = slots, 0
}

// at returns the frame with this number, which the ring must contain.
func (r *ring) at(seq int64) frame {
	return r.slots[(r.head+int(seq-r.first))%len(r.slots)]
}

// trim removes everything up to seq.
func (r *ring) trim(seq int64) {
	for r.n > 0 && r.first <= seq {
		r.slots[r.head] = frame{}
		r.head = (r.head + 1) % len(r.slots)
		r.first++
		r.n--
	}
}
