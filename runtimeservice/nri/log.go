package nri

import (
	"context"
	"fmt"

	nrilog "github.com/containerd/nri/pkg/log"
	"k8s.io/klog/v2"
)

// SetLogger directs the library's log output to l, for the whole process. Call it before the first
// Start.
func SetLogger(l klog.Logger) { nrilog.Set(logger{l}) }

// logger writes the library's log to klog. The library's information level is for debugging here.
type logger struct{ klog.Logger }

func (l logger) Debugf(_ context.Context, format string, args ...any) {
	l.V(6).Info(fmt.Sprintf(format, args...))
}

func (l logger) Infof(_ context.Context, format string, args ...any) {
	l.V(4).Info(fmt.Sprintf(format, args...))
}

func (l logger) Warnf(_ context.Context, format string, args ...any) {
	l.Info(fmt.Sprintf(format, args...))
}

func (l logger) Errorf(_ context.Context, format string, args ...any) {
	l.Error(nil, fmt.Sprintf(format, args...))
}
