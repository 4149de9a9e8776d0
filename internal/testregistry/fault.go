package testregistry

import (
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Kind is a kind of fault.
type Kind int

// Kinds of faults. Those that affect the body apply only to successful responses.
const (
	Hang        Kind = iota + 1 // send At bytes of the body (none and no header when At is 0), then nothing until the client disconnects
	Reset                       // send At bytes of the body, then reset the TCP connection
	Truncate                    // announce the full length, send At bytes, close
	Short                       // announce and send only the first At bytes, as if the object ended there
	Corrupt                     // flip a bit of the body's byte At
	Slow                        // send the body at Rate bytes per second
	Status                      // respond with Code, and with RetryAfter if set
	IgnoreRange                 // respond to a Range request with 200 and the whole body
	Hold                        // send At bytes of the body, and the rest once Until is closed
	WrongType                   // serve a manifest with the Content-Type MediaType
)

// Fault is one fault to inject.
type Fault struct {
	Kind   Kind
	Method string // HTTP method that the fault applies to; "" means any
	Path   string // part of the URL path that the fault applies to, such as "/blobs/" or a digest; "" means any
	Skip   int    // number of matching requests that are served normally first
	Times  int    // number of affected requests after that; 0 means all

	At         int64           // Hang, Reset, Truncate, Short, Corrupt, Hold: offset in the body sent, in bytes
	Until      <-chan struct{} // Hold: closed when the rest may be sent
	Rate       int64           // Slow: bytes per second
	Code       int             // Status: HTTP status code
	RetryAfter string          // Status: Retry-After header
	MediaType  string          // WrongType: the Content-Type
}

type faultState struct {
	Fault
	seen int
}

// takeFault returns the fault to apply to req and counts its use.
func (r *Registry) takeFault(req *http.Request) *Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.faults {
		if f.Method != "" && f.Method != req.Method || !strings.Contains(req.URL.Path, f.Path) {
			continue
		}
		if f.Times > 0 && f.seen >= f.Skip+f.Times {
			continue
		}
		f.seen++
		if f.seen > f.Skip {
			fault := f.Fault
			return &fault
		}
	}
	return nil
}

// faultWriter applies a fault to the body that is written through it.
type faultWriter struct {
	http.ResponseWriter
	req   *http.Request
	fault Fault
	ok    bool  // the response is successful, so the fault applies
	sent  int64 // body bytes sent
}

func (w *faultWriter) WriteHeader(code int) {
	w.ok = code >= 200 && code < 300
	if w.ok {
		switch w.fault.Kind {
		case Hang:
			if w.fault.At == 0 {
				w.hang()
			}
		case Short:
			w.shorten()
		case WrongType:
			w.Header().Set("Content-Type", w.fault.MediaType)
		default: // a fault of the body or before the handler
		}
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *faultWriter) shorten() {
	n, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	if err == nil && n > w.fault.At {
		w.Header().Set("Content-Length", strconv.FormatInt(w.fault.At, 10))
	}
}

func (w *faultWriter) Write(p []byte) (int, error) {
	if !w.ok {
		return w.ResponseWriter.Write(p)
	}
	switch w.fault.Kind {
	case Hang, Reset, Truncate, Short:
		return w.writeUpTo(p)
	case Corrupt:
		return w.corrupt(p)
	case Slow:
		return w.slow(p)
	case Hold:
		return w.hold(p)
	default:
		return w.ResponseWriter.Write(p)
	}
}

// hold writes the bytes up to offset At, and the others once Until is closed.
func (w *faultWriter) hold(p []byte) (int, error) {
	first := int(max(0, min(int64(len(p)), w.fault.At-w.sent)))
	n, err := w.ResponseWriter.Write(p[:first])
	w.sent += int64(n)
	if err != nil || n == len(p) {
		return n, err
	}
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	select {
	case <-w.fault.Until:
	case <-w.req.Context().Done():
		return n, w.req.Context().Err()
	}
	more, err := w.ResponseWriter.Write(p[n:])
	return n + more, err
}

// writeUpTo writes the bytes up to offset At and then applies the fault.
func (w *faultWriter) writeUpTo(p []byte) (int, error) {
	left := w.fault.At - w.sent
	if int64(len(p)) <= left {
		n, err := w.ResponseWriter.Write(p)
		w.sent += int64(n)
		return n, err
	}
	n, err := w.ResponseWriter.Write(p[:left])
	w.sent += int64(n)
	if err != nil {
		return n, err
	}
	_ = http.NewResponseController(w.ResponseWriter).Flush()
	switch w.fault.Kind {
	case Hang:
		w.hang()
	case Reset:
		w.reset()
	case Short:
		return len(p), nil
	default: // the connection ends here
	}
	panic(http.ErrAbortHandler)
}

func (w *faultWriter) hang() {
	<-w.req.Context().Done()
	panic(http.ErrAbortHandler)
}

// reset closes the connection so that the peer receives an RST instead of a FIN.
func (w *faultWriter) reset() {
	conn, _, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
	panic(http.ErrAbortHandler)
}

func (w *faultWriter) corrupt(p []byte) (int, error) {
	at := w.fault.At - w.sent
	if at >= 0 && at < int64(len(p)) {
		q := append([]byte(nil), p...)
		q[at] ^= 1
		p = q
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent += int64(n)
	return n, err
}

func (w *faultWriter) slow(p []byte) (int, error) {
	const slice = 20 * time.Millisecond
	chunk := int(max(1, w.fault.Rate*int64(slice)/int64(time.Second)))
	ticker := time.NewTicker(slice)
	defer ticker.Stop()
	sent := 0
	for sent < len(p) {
		n, err := w.ResponseWriter.Write(p[sent:min(len(p), sent+chunk)])
		sent += n
		if err != nil {
			return sent, err
		}
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		select {
		case <-ticker.C:
		case <-w.req.Context().Done():
			return sent, w.req.Context().Err()
		}
	}
	return sent, nil
}
