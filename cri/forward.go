package cri

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/spdystream"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

// maxForwardings is the number of connections to a pod that one client may have at a time. Each takes
// some 100 KB and a descriptor.
const maxForwardings = 512

// forwarding is one connection to a port of a pod: a pair of streams with the same
// request ID.
type forwarding struct {
	data, errs *spdystream.Stream // nil until opened
	since      time.Time          // when the first was opened
}

func (f *forwarding) end() {
	for _, stream := range []*spdystream.Stream{f.data, f.errs} {
		if stream != nil {
			finish(stream)
		}
	}
}

// add adds a stream. It returns false if the stream has an unknown type or is a duplicate.
func (f *forwarding) add(stream *spdystream.Stream) bool {
	missing := map[string]**spdystream.Stream{
		portforward.StreamTypeData:  &f.data,
		portforward.StreamTypeError: &f.errs,
	}[stream.Headers().Get(portforward.StreamType)]
	if missing == nil || *missing != nil {
		return false
	}
	*missing = stream
	return true
}

// forwardOverSPDY serves each pair of streams that the client opens, until the connection ends or
// the server stops. When a client disconnects, data that it has sent still gets sessionGrace to
// reach the pod.
func (s *streamServer) forwardOverSPDY(ctx context.Context, conn *spdyConn, pod string) {
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var running sync.WaitGroup
	defer func() {
		conn.acceptNoMore()
		late := time.AfterFunc(sessionGrace, cancel)
		defer late.Stop()
		running.Wait()
	}()
	var active atomic.Int64
	halves := map[string]*forwarding{}
	defer func() {
		for _, f := range halves {
			f.end()
		}
	}()
	ticker := time.NewTicker(s.openTimeout)
	defer ticker.Stop()
	for {
		select {
		case stream := <-conn.opened:
			full := len(halves)+int(active.Load()) >= maxForwardings
			if f := pair(halves, stream, full); f != nil {
				active.Add(1)
				running.Go(func() {
					defer active.Add(-1)
					s.forward(serving, pod, f)
				})
			}
		case <-ticker.C:
			for id, f := range halves {
				if time.Since(f.since) >= s.openTimeout {
					f.end()
					delete(halves, id)
				}
			}
		case <-conn.CloseChan():
			return
		case <-s.sessions.server.stopping:
			return
		}
	}
}

// pair returns the forwarding that stream completes. It returns nil if the other stream is still
// missing, or if it has rejected stream. If full is true, it rejects streams of new forwardings.
func pair(halves map[string]*forwarding, stream *spdystream.Stream, full bool) *forwarding {
	if _, err := portOf(stream); err != nil {
		_ = stream.Reset()
		return nil
	}
	id := requestID(stream)
	f := halves[id]
	if f == nil && full {
		_ = stream.Reset()
		return nil
	}
	if f == nil {
		f = &forwarding{since: time.Now()}
	}
	if !f.add(stream) {
		_ = stream.Reset()
		return nil
	}
	halves[id] = f
	if f.data == nil || f.errs == nil {
		return nil
	}
	delete(halves, id)
	return f
}

// portOf returns the port in a stream's headers.
func portOf(stream *spdystream.Stream) (int32, error) {
	port, err := strconv.ParseUint(stream.Headers().Get(portforward.PortHeader), 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("port of stream: %q", stream.Headers().Get(portforward.PortHeader))
	}
	return int32(port), nil
}

// requestID identifies the pair that a stream belongs to. Older clients send no request ID; they
// open the error stream first and the data stream next.
func requestID(stream *spdystream.Stream) string {
	if id := stream.Headers().Get(portforward.PortForwardRequestIDHeader); id != "" {
		return id
	}
	id := stream.Identifier()
	if stream.Headers().Get(portforward.StreamType) == portforward.StreamTypeData {
		id -= 2
	}
	return strconv.FormatUint(uint64(id), 10)
}

// forward serves one pair of streams.
func (s *streamServer) forward(ctx context.Context, pod string, f *forwarding) {
	defer f.end()
	port, err := portOf(f.data)
	if err == nil {
		err = s.sessions.PortForward(ctx, pod, port, f.data)
	}
	if err != nil {
		_, _ = io.WriteString(f.errs, forwardFailure(pod, port, err))
		_ = f.data.Reset() // a clean close would suggest that the data is complete
	}
}

// forwardFailure is the text for a client whose forwarding has failed.
func forwardFailure(pod string, port int32, err error) string {
	return fmt.Sprintf("forwarding to port %d of pod %s: %v", port, pod, err)
}
