package keeper

import "sync"

// eventQueue delivers each container's exit once, although keepers may report it several times. The
// goroutine that receives from the keeper never waits for the reader of out.
type eventQueue struct {
	out  chan Event
	stop chan struct{}
	done chan struct{}
	wake chan struct{}

	mu       sync.Mutex // guards the rest
	queue    []Event
	reported map[string]bool
}

func newEventQueue() *eventQueue {
	q := &eventQueue{
		out: make(chan Event), stop: make(chan struct{}), done: make(chan struct{}),
		wake: make(chan struct{}, 1), reported: map[string]bool{},
	}
	go q.run()
	return q
}

// close ends delivery and closes out. It must be called once.
func (q *eventQueue) close() {
	close(q.stop)
	<-q.done
}

func (q *eventQueue) put(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.reported[e.ID] {
		return
	}
	q.reported[e.ID] = true
	q.queue = append(q.queue, e)
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// forget allows the exit of another container with this ID.
func (q *eventQueue) forget(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.reported, id)
}

func (q *eventQueue) take() []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch := q.queue
	q.queue = nil
	return batch
}

func (q *eventQueue) run() {
	defer close(q.done)
	defer close(q.out)
	for {
		select {
		case <-q.wake:
		case <-q.stop:
			return
		}
		for _, e := range q.take() {
			select {
			case q.out <- e:
			case <-q.stop:
				return
			}
		}
	}
}
