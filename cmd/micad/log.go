package main

import (
	"io"
	"log/slog"
	"strconv"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"github.com/micarun/mica/config"
)

// setLog makes klog, which Mica and the Kubernetes libraries use, write to w. The returned function
// changes the level later.
func setLog(c config.Log, w io.Writer) (setLevel func(int)) {
	if c.Format == "json" {
		return setJSONLog(c.Level, w)
	}
	text := textlogger.NewConfig(textlogger.Output(w), textlogger.Verbosity(c.Level))
	klog.SetLoggerWithOptions(textlogger.NewLogger(text), klog.ContextualLogger(true))
	return func(level int) {
		// Set fails only for text that is not a number.
		_ = text.Verbosity().Set(strconv.Itoa(level))
	}
}

func setJSONLog(level int, w io.Writer) (setLevel func(int)) {
	// klog's V(n) is slog's level -n.
	limit := new(slog.LevelVar)
	limit.Set(slog.Level(-level))
	handler := slog.NewJSONHandler(w, &slog.HandlerOptions{Level: limit, AddSource: true, ReplaceAttr: readable})
	klog.SetSlogLogger(slog.New(handler))
	return func(level int) { limit.Set(slog.Level(-level)) }
}

// readable writes levels as "v4" and durations as "1.5s", where slog would write
// "INFO-4" and nanoseconds.
func readable(groups []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.Duration().String())
	}
	level, ok := a.Value.Any().(slog.Level)
	switch {
	case len(groups) > 0 || a.Key != slog.LevelKey || !ok:
		return a
	case level >= slog.LevelError:
		return slog.String(a.Key, "error")
	case level >= slog.LevelInfo:
		return slog.String(a.Key, "info")
	}
	return slog.String(a.Key, "v"+strconv.Itoa(-int(level)))
}
