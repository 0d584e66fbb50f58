/** How much an image may ask of the host. Real images, also the largest with a million files, stay well below. */
export interface ImageLimits {
  /** Files of all layers together, holes counted; and what any one layer unpacks to. */
  readonly maxImageBytes: number
  /** Entries of all layers together. A conversion holds some 27 bytes for each, and its name; tar2sqfs 250. */
  readonly maxEntries: number
  readonly maxNameBytes: number
  /** How many bytes may come out of one compressed byte, once a layer has given `ratioFloorBytes`: zeros compress well in honest images too. */
  readonly maxRatio: number
  readonly ratioFloorBytes: number
  readonly maxDepth: number
  readonly maxPathBytes: number
  readonly maxLayers: number
  /** Manifests, indexes and configurations: parsed in one go, so they must be small enough not to hold the event loop. */
  readonly maxDocumentBytes: number
}

export const DEFAULT_LIMITS: ImageLimits = {
  maxImageBytes: 50 * 1024 ** 3,
  maxEntries: 2_000_000,
  maxNameBytes: 64 * 1024 ** 2,
  maxRatio: 200,
  ratioFloorBytes: 1024 ** 3,
  maxDepth: 256,
  // PATH_MAX of Linux, with the NUL.
  maxPathBytes: 4095,
  maxLayers: 500,
  maxDocumentBytes: 2 * 1024 ** 2,
}
