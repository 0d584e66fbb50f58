/** A promise of docs/promises.md, as it was measured beside its anchor in one run. */
export interface Outcome {
  readonly id: string
  readonly ours: number
  /** The same work without dormouse; null where the promise is an absolute one. */
  readonly anchor: number | null
  readonly unit: 'ms' | 'MiB'
  /** How many times less ours is than the anchor. */
  readonly ratio: number | null
  readonly target: string
  readonly met: boolean
  /** How often each side was measured. */
  readonly runs: number
  /** What was measured and how, in words. */
  readonly what: string
  /** Every single figure, in order. */
  readonly samples: { readonly ours: readonly number[]; readonly anchor: readonly number[] }
}

/** What a promise demands, and whether it holds for these figures. */
export interface Target {
  readonly text: string
  readonly holds: (ours: number, anchor: number | null) => boolean
}

export const atLeastTimesFaster = (times: number): Target => ({
  text: `at least ${times} times faster than the anchor`,
  holds: (ours, anchor) => anchor !== null && anchor / ours >= times,
})

export const atMost = (limit: number, unit: Outcome['unit']): Target => ({
  text: `at most ${limit} ${unit}`,
  holds: (ours) => ours <= limit,
})

export const atMostAboveAnchor = (limit: number, unit: Outcome['unit']): Target => ({
  text: `at most ${limit} ${unit} more than the anchor`,
  holds: (ours, anchor) => anchor !== null && ours - anchor <= limit,
})

export const atMostAndFaster = (limit: number, unit: Outcome['unit']): Target => ({
  text: `at most ${limit} ${unit}, and less than the anchor`,
  holds: (ours, anchor) => ours <= limit && anchor !== null && ours < anchor,
})

export const atMostTimesAnchor = (times: number): Target => ({
  text: `at most ${times} times the anchor`,
  holds: (ours, anchor) => anchor !== null && ours <= anchor * times,
})

export interface Measurement {
  readonly id: string
  readonly what: string
  readonly unit: Outcome['unit']
  readonly target: Target
  readonly ours: readonly number[]
  readonly anchor?: readonly number[]
  /** Which of the sorted figures counts: the median unless the promise names another. */
  readonly percentile?: number
}

export function outcomeOf({ id, what, unit, target, ours, anchor, percentile = 50 }: Measurement): Outcome {
  const own = percentileOf(ours, percentile)
  const other = anchor === undefined ? null : percentileOf(anchor, percentile)
  return {
    id,
    ours: rounded(own),
    anchor: other === null ? null : rounded(other),
    unit,
    ratio: other === null ? null : rounded(other / own),
    target: target.text,
    met: target.holds(own, other),
    runs: ours.length,
    what,
    samples: { ours: ours.map(rounded), anchor: (anchor ?? []).map(rounded) },
  }
}

/** The figure below which `percentile` of a hundred lie: with an even number in the middle, the mean of the two. */
export function percentileOf(figures: readonly number[], percentile: number): number {
  const sorted = figures.toSorted((a, b) => a - b)
  if (sorted.length === 0) throw new Error('There are no figures to take a percentile of')
  const place = ((sorted.length - 1) * percentile) / 100
  const low = sorted[Math.floor(place)] ?? Number.NaN
  const high = sorted[Math.ceil(place)] ?? Number.NaN
  return low + (high - low) * (place - Math.floor(place))
}

const rounded = (figure: number): number => Math.round(figure * 100) / 100
