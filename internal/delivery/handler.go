package delivery

import (
	"context"
	"errors"
	"time"

	"github.com/gatehook/gatehook/internal/openapi"
	"github.com/gatehook/gatehook/internal/postgres"
)

// callTimeout bounds a call's work in the database.
const callTimeout = 10 * time.Second

// ListSigningKeys implements GET /signing-keys.
func (d *Delivery) ListSigningKeys(context.Context, openapi.ListSigningKeysRequestObject) (openapi.ListSigningKeysResponseObject, error) {
	return openapi.ListSigningKeys200JSONResponse(showKeys(d.keyring.all())), nil
}

// RotateSigningKey implements POST /signing-keys/rotate.
func (d *Delivery) RotateSigningKey(ctx context.Context, _ openapi.RotateSigningKeyRequestObject) (openapi.RotateSigningKeyResponseObject, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errors.New("the database took longer than 10 s"))
	defer cancel()
	if err := d.keyring.rotate(ctx); err != nil {
		if postgres.Unavailable(err) {
			return nil, openapi.Unavailable()
		}
		return nil, err
	}
	return openapi.RotateSigningKey200JSONResponse(showKeys(d.keyring.all())), nil
}

func showKeys(keys []signingKey) openapi.SigningKeys {
	out := openapi.SigningKeys{Data: make([]openapi.SigningKey, len(keys))}
	for i, k := range keys {
		out.Data[i] = openapi.SigningKey{PublicKey: k.public(), CreatedAt: k.createdAt.UTC(), Signs: i == 0}
	}
	return out
}
