package nri

import (
	"context"
	"fmt"

	nrilog "github.com/containerd/nri/pkg/log"
	"k8s.io/klog/v2"
)

// SetLogger directs what the library logs, in the whole process, to l. It is
// called before the first Start.
func SetLogger(l klog.Logger) { nrilog.Set(logger{l}) }

// logger directs the library's log to klog. What it calls information is for
// debugging here.
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
