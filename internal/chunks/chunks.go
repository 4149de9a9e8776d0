// Package chunks splits the items of a list into messages of bounded size, for the CRI's streaming
// lists (StreamContainers, StreamImages and others). It is used by imageservice and runtimeservice.
//
// A gRPC client accepts messages of 4 MiB unless it is configured otherwise, so a list of a node
// with many containers may not fit into one message.
package chunks

import (
	"iter"

	"google.golang.org/protobuf/proto"
)

// maxBytes is the size at which a message is full: a quarter of what a gRPC client accepts by
// default, because the size of the message around the items is not counted.
const maxBytes = 1 << 20

// Send calls send with all items in order, in chunks of about 1 MiB in encoded form. A larger item
// is a chunk of its own. For an empty list it does not call send. It returns the first error of
// send.
func Send[T proto.Message](items []T, send func([]T) error) error {
	for chunk := range bySize(items, maxBytes) {
		if err := send(chunk); err != nil {
			return err
		}
	}
	return nil
}

// bySize yields the items in order, in chunks of at most limit encoded bytes or of one item.
func bySize[T proto.Message](items []T, limit int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		begin, size := 0, 0
		for i, item := range items {
			itemSize := proto.Size(item)
			if i > begin && size+itemSize > limit {
				if !yield(items[begin:i]) {
					return
				}
				begin, size = i, 0
			}
			size += itemSize
		}
		if begin < len(items) {
			yield(items[begin:])
		}
	}
}
