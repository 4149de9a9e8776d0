package admin

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

const (
	headerTimeout = 5 * time.Second
	stopTimeout   = 5 * time.Second
	maxRequest    = 1 << 20
	// sendTimeout bounds how long a client may leave a part of a profile unread. The process
	// buffers a trace while it cannot be sent.
	sendTimeout = 5 * time.Second
)

// Serve answers requests on l until ctx ends, gives requests in progress five seconds to end, and
// closes l. A regular stop returns nil.
func Serve(ctx context.Context, l net.Listener, d Daemon) error {
	mux := http.NewServeMux()
	mux.Handle("GET "+pathInfo, handle(func(ctx context.Context, _ struct{}) (Info, error) { return d.Info(ctx) }))
	mux.Handle("POST "+pathCheck, handle(d.Check))
	mux.Handle("POST "+pathStop, handle(func(ctx context.Context, args StopArgs) (struct{}, error) {
		return struct{}{}, d.Stop(ctx, args)
	}))
	mux.Handle("GET "+pathEvents, streamEvents(ctx, d))
	mux.Handle("POST "+pathProfile, sendProfile(ctx, d))
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		ErrorLog:          slog.NewLogLogger(logr.ToSlogHandler(klog.FromContext(ctx)), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	err := srv.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, srv.Close())
	}
	if serr := <-ended; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// failure is the body of a response other than 200.
type failure struct {
	Error string `json:"error"`
}

// handle wraps a function from request to response body in an HTTP handler.
func handle[Request, Answer any](serve func(context.Context, Request) (Answer, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req Request
		if r.Method == http.MethodPost && !decode(w, r, &req) {
			return
		}
		answer, err := serve(r.Context(), req)
		if err != nil {
			reply(w, http.StatusInternalServerError, failure{err.Error()})
			return
		}
		reply(w, http.StatusOK, answer)
	})
}

// decode decodes the request's body, or replies why it cannot.
func decode(w http.ResponseWriter, r *http.Request, req any) bool {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(req)
	if err != nil {
		reply(w, http.StatusBadRequest, failure{"decode request: " + err.Error()})
	}
	return err == nil
}

// message is one line of the event stream: an event, or the error that ends the stream.
type message struct {
	Event   *Event   `json:"event,omitempty"`
	Failure *failure `json:"failure,omitempty"`
}

// streamEvents sends one message per line. The stream also ends with ctx, so that a follower does
// not delay the daemon's exit.
func streamEvents(ctx context.Context, d Daemon) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		w.Header().Set("Content-Type", "application/jsonl")
		out := json.NewEncoder(w)
		flush := http.NewResponseController(w).Flush
		err := flush()
		if err == nil {
			err = d.Events(asked, EventsArgs{Follow: r.URL.Query().Has("follow")}, func(e Event) error { //nolint:contextcheck // asked ends with ctx
				return errors.Join(out.Encode(message{Event: &e}), flush())
			})
		}
		if err != nil && asked.Err() == nil {
			_ = out.Encode(message{Failure: &failure{err.Error()}}) // a failure means that the client has disconnected
		}
	})
}

// sendProfile sends a profile, or an error if there is one before the first byte. After a later
// error it breaks the connection. The profile ends with ctx.
func sendProfile(ctx context.Context, d Daemon) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var args ProfileArgs
		if !decode(w, r, &args) {
			return
		}
		asked, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		out := &promptWriter{to: w}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Connection", "close") // the write deadline would apply to later responses
		err := d.Profile(asked, args, out)    //nolint:contextcheck // asked ends with ctx
		switch {
		case err != nil && out.began:
			panic(http.ErrAbortHandler)
		case err != nil:
			reply(w, http.StatusInternalServerError, failure{err.Error()})
		}
	})
}

// promptWriter is a response whose client has to read each part within sendTimeout.
type promptWriter struct {
	to    http.ResponseWriter
	began bool // something was written
}

func (p *promptWriter) Write(b []byte) (int, error) {
	p.began = true
	if err := http.NewResponseController(p.to).SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return 0, err
	}
	return p.to.Write(b)
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // a failure means that the client has disconnected
}
