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
		if r.Method == http.MethodPost {
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req); err != nil {
				reply(w, http.StatusBadRequest, failure{"decode request: " + err.Error()})
				return
			}
		}
		answer, err := serve(r.Context(), req)
		if err != nil {
			reply(w, http.StatusInternalServerError, failure{err.Error()})
			return
		}
		reply(w, http.StatusOK, answer)
	})
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

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // a failure means that the client has disconnected
}
