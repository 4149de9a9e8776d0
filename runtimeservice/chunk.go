package runtimeservice

import (
	"context"
	"iter"
	"slices"

	"google.golang.org/protobuf/proto"
)

// chunkBytes is how large a message of a streamed list may grow before the next
// begins: a quarter of what a gRPC client takes that asks for no more.
const chunkBytes = 1 << 20

// streamBatch is how many objects are read before what was read is sent, so that
// no answer lies in memory as a whole.
const streamBatch = 64

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

// sendAll sends the items in chunks of bounded size.
func sendAll[T proto.Message](items []T, send func([]T) error) error {
	for chunk := range chunkBySize(items, chunkBytes) {
		if err := send(chunk); err != nil {
			return err
		}
	}
	return nil
}

// gatherAndSend reads the items as gather does and sends the readings in chunks
// of bounded size, a batch of items at a time.
func gatherAndSend[T object, R proto.Message](ctx context.Context, items []T, read func(context.Context, T) (R, error), send func([]R) error) error {
	for batch := range slices.Chunk(items, streamBatch) {
		readings, err := gather(ctx, batch, read)
		if err != nil {
			return err
		}
		if err := sendAll(readings, send); err != nil {
			return err
		}
	}
	return nil
}
