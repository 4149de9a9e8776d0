package streams

import (
	"io"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// FollowSize calls apply for every size of the client's terminal until ended is closed or the
// client has disconnected. It skips sizes of 0, which some clients send first.
func FollowSize(ended <-chan struct{}, sizes <-chan remotecommand.TerminalSize, apply func(remotecommand.TerminalSize)) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			if size.Width > 0 && size.Height > 0 {
				apply(size)
			}
		case <-ended:
			return
		}
	}
}

// CloseAll closes the streams that are not nil. It ignores errors: the stream of a disconnected
// client cannot be closed and need not be.
func CloseAll(streams ...io.WriteCloser) {
	for _, stream := range streams {
		if stream != nil {
			_ = stream.Close()
		}
	}
}
