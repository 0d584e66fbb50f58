/** The feed of what happened: each event is a row, written in the same transaction as the change it tells of. */
import { type Static, Type } from 'typebox'
import { DateTime } from './names.ts'
import type { Scope } from './tokens.ts'

/** What a token must allow to be told of events of these kinds, by the noun that they begin with. */
export const EVENT_SCOPES = {
  instance: 'instance:read',
  auto_standby: 'instance:read',
  schedule: 'snapshot:read',
  snapshot: 'snapshot:read',
  image: 'image:read',
  push: 'image:read',
  volume: 'volume:read',
  device: 'device:read',
} as const satisfies Readonly<Record<string, Scope>>

/**
 * Events that a reader asked for are there no more: `data` is `{ after, oldest }`, the id that it had come to and the next one that there is.
 * Everyone who follows is told of it, whatever else. What they know of the rest may be stale: it is to be read anew.
 */
export const EVENTS_LOST = 'events.lost'

export type EventKind = `${keyof typeof EVENT_SCOPES}.${string}` | typeof EVENTS_LOST

/** Undefined for a kind that no one has thought of: only who may do everything is told. */
export const scopeOfEvent = (kind: string): Scope | undefined =>
  (EVENT_SCOPES as Readonly<Record<string, Scope>>)[kind.slice(0, Math.max(0, kind.indexOf('.')))]

/** What a reader can follow with `Last-Event-ID`: ids only grow. Kinds are `noun.past`, such as `instance.changed`. */
export const Event = Type.Object(
  {
    id: Type.Integer(),
    kind: Type.String({
      description: 'noun.past, such as instance.changed; events.lost: older ones, which were asked for, are there no more',
    }),
    at: DateTime,
    subject: Type.String({ description: 'Id of the instance, name of the image; `events` of events.lost' }),
    data: Type.Record(Type.String(), Type.Unknown()),
  },
  { $id: 'Event' },
)
export type Event = Static<typeof Event>
