package runtimeservice

import (
	"iter"

	"google.golang.org/protobuf/proto"
)

// chunkBytes is how large a message of a streamed list may grow before the next
// begins, a quarter of what clients take.
const chunkBytes = 4 << 20

// chunkBySize yields the items in order, in chunks of at most about limit
// encoded bytes or of one item.
func chunkBySize[T proto.Message](items []T, limit int) iter.Seq[[]T] {
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
