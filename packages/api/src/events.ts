/** The feed of what happened: each event is a row, written in the same transaction as the change it tells of. */
import { type Static, Type } from 'typebox'
import { DateTime } from './names.ts'

/** What a reader can follow with `Last-Event-ID`: ids only grow. Kinds are `noun.past`, such as `instance.changed`. */
export const Event = Type.Object(
  {
    id: Type.Integer(),
    kind: Type.String({ description: 'noun.past, such as instance.changed' }),
    at: DateTime,
    subject: Type.String({ description: 'Id of the instance, name of the image' }),
    data: Type.Record(Type.String(), Type.Unknown()),
  },
  { $id: 'Event' },
)
export type Event = Static<typeof Event>
